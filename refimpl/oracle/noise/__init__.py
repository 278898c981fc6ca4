"""How far honest arithmetic strays, and the verdict that follows."""
