"""What the book needs beyond Sphinx and MyST-NB: links to source files, signatures with shapes, drawings inline."""
