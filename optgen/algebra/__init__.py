"""Rules as mathematics: equality, shorter scalars, derivatives, bounds, LaTeX. Only this imports sympy."""
