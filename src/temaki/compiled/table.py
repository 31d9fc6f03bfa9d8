"""The words that the cache and its kernels share: kinds of numbers, and what stands where in a cache's tables.

A cache has a row of int64 and a row of float32 numbers for each layer; kernels are given both tables whole.
Letters: C places a slot, H heads, G heads of keys and values, K head size.
"""

FLOAT32, FLOAT16, INT8 = 0, 1, 2
ITEM = (4, 2, 1)
"""Bytes of a stored number of each kind."""

BLOCK = 16
"""Places whose keys lie together."""
SPAN = 256
"""Places of a softmax of its own."""
EXTRA = 16
"""Numbers of a span's partial after its weighted values: the largest score, the sum, padding."""

AT, SLOT, STEP, GROUP, VALUES, KEY_SCALES, VALUE_SCALES = range(7)
"""Where the layer begins in a span; bytes from slot to slot, from span to span, from group to group; where in a group's
bytes values begin, and the scales of keys and of values."""
KIND, HEADS, GROUPS, SIZE, PADDED, WINDOW, SLOPED = range(7, 14)
"""Kind of numbers, H, G, K, K padded to 16, places seen, whether there are slopes."""
SCORES, WEIGH, FLOAT_SCORES, FLOAT_WEIGH, WIDEN, SOFTMAX, FOLD = range(14, 21)
"""Addresses of natives: for numbers as they are stored, for float32 numbers, and for all."""
FIELDS = 21
"""Numbers of a layer in the int64 table."""

SCALE, CAP, SLOPES = range(3)
"""In the float32 table: what multiplies scores, their cap, and from there on a slope a head."""
UNLIMITED = 1 << 62
"""The window of a layer without one."""
