"""What the commands do besides ``improve``: options in, text and files out, an exit status back."""
