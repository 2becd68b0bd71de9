"""Records to tables: which runs belong together, their rows, columns, notes and flags, as every report draws them."""
