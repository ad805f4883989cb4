"""One open set of things that every door shares: index, models, batches, queues, counters. Knows no protocol."""

from qmd.serve.service.limits import Abandoned as Abandoned
from qmd.serve.service.limits import Busy as Busy
from qmd.serve.service.limits import Limits as Limits
from qmd.serve.service.limits import TooLate as TooLate
from qmd.serve.service.service import Service as Service
