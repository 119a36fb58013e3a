//! Configuration files: every mistake at once, with file, line and caret
