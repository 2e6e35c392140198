"""One open index and its answers: `opened` asks the others.

`loaded` holds the vectors, which `segments` reads, `rows` and `pictures` what is known of them.
`where` turns a condition into rows, by `evaluate`; `query` makes a vector of words, a picture or a
sound; `nearest` compares vectors exactly.
"""
