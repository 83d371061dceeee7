"""Getting a model: found, brought, converted, quantised, placed, and tried out before it is relied on."""
