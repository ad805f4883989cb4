"""Opening images the same way everywhere: what training sees is what the engine sees."""

from qmd.llm.pictures import open_image, square_pixels

__all__ = ["open_image", "square_pixels"]
