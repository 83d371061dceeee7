"""A frozen model read from behind a prefix: layouts, packing, caches, attention, head, low-rank rows."""
