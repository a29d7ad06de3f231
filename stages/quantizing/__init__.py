"""How the stage quantize works: what it judges with, and how one INT8 file is made and improved."""
