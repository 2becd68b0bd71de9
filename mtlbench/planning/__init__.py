"""From the text of a request to cells."""
