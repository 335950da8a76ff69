"""One module per kind of question a client asks."""
