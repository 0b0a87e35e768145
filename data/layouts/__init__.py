"""Ids as other tools lay them out, read where they lie. Each layout states its own rule for the borders of documents.

To whoever reads them they are a token store: a document is `<end of text> t1 ... tn` whether the end of text was stored
before it, behind it or not at all, and a document without a token is left out. So where each document has
one end of text, as many tokens are read as are stored.
"""
