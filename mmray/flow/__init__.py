"""Fragments become rows: plan what is left, run the stages, commit what is finished.

One way: `plan` (what is to be done) -> `drive` (Ray Data runs `stages` on it) -> `run` (commits
receipts until everything planned is covered). `drive` alone knows Ray; `stages` puts together
`decoding`, `encoding` and `writing`, and `batch` is what travels between them. Where a sample may
end its worker, `careful` lets a `child` do the decoding and encoding.
"""
