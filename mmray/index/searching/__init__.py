"""One open index and its answers: `opened` asks the others.

`loaded` holds the vectors, `rows` and `pictures` what is known of them, `where` turns a condition
into rows, and `query` makes a vector of words, a picture or a sound.
"""
