"""From parameters to launches: tables, the one door for pointers, recordings and their replay."""
