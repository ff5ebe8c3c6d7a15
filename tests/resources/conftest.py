from tests.tiny_student import tiny_base

__all__ = ["tiny_base"]
