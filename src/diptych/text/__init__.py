"""The text panel: a transformer predicts the next token; it is drawn, appended, and so on."""
