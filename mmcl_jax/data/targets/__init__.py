"""Labels: codes, tables, units, and what is known of whom."""
