"""What `checkers.maths` is made of: how final answers are found, read and compared."""
