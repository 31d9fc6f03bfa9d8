"""What a call of the step kernel is told: an array of int64 numbers, the job, and the tables by place.

A ticket is a counter from which the threads of a crew take their parts of a phase.
"""

CHUNK = 128
"""Rows that one call takes at most."""
FEW = 2
"""Rows that each thread norms for itself."""
PHASES = 6
"""Tickets of a layer."""

(
    COUNT, WANTED, RUNS, SPANS, LOGITS, HIDDENS, HELPERS, WIDTH, PADDED, VOCABULARY, DEPTH, EMBEDDED, EMBEDDING,
    PLACED, X, STACKED, STACK, SEEN, SEE, MADE, MAKE, RAISED, RAISE, OWN, OWNED, PARTIALS, PARTIAL, ACT, FIELDS,
) = range(29)  # fmt: skip
"""The job: what differs from call to call (COUNT .. HIDDENS: rows, wanted rows, runs, spans at most of a run that is
cut into them (0: none is), addresses of the results (0: not asked for)), then what the model and its memory are like:
where each buffer begins among the floats, and the numbers from row to row."""
IDS, AT_PLACES, SLOTS, WANTS, RUN_SLOTS, RUN_ROWS, RUN_PLACES, RUN_IDS = (FIELDS + CHUNK * i for i in range(8))
"""Lists in the job: of each row its id, place, slot; the wanted rows; of each run (consecutive ids of one slot) its
slot, first row, place of that, ids."""
LISTS = FIELDS + 8 * CHUNK
"""Where the layers' list begins: for each layer where its cosines and its sines begin among the tables."""
SCALE, CAP = 0, 1
"""The first of the tables' numbers: what multiplies embeddings, the cap of the logits (0: none); then, from HEAD on,
positions and angles."""
HEAD = 16
