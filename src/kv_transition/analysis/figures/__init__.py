"""Figures: each one an SVG, a PNG and a CSV of the plotted numbers, with the same bytes for the same tables."""
