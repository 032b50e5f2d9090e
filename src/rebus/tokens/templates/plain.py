"""No turns: texts and pictures as they come, then the token that ends a text. Documents are laid out so everywhere, and
by `template` itself; nobody speaks here, so there is no conversation."""

SYSTEM = None
SPECIAL: tuple[str, ...] = ()
END = None
OPENED = True
