"""An index from a store: built as a whole, or brought up to date; measured, then published.

`asked` holds the job against what is there, `build` goes through the steps: `start` samples and
trains, `cut` shares the rows out, `pieces` adds them, `finish` joins, tunes and measures, `publish`
makes it the next version. `update` and `changes` are of an index that is there.
"""
