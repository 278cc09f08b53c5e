"""Tables of answers and of judged answers: files, columns, values."""
