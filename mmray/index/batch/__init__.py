"""Many queries through one index, and its near-duplicates, in pieces that a rerun goes on from.

Of a search: `batches` from a store, `queryfile` and `queryrows` from a file, `answers` to files of
hits. Of near-duplicates: `duplicates` finds and groups, `settled` keeps how far that got, `lists`
writes what came of it. `process` is the index that a process has open for them.
"""
