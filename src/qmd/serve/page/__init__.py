"""The search page, and the policy that it is served under."""

from qmd.serve.page.file import Page as Page
from qmd.serve.page.file import read_page as read_page
