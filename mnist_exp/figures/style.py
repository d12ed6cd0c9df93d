"""The one palette. It imports no Matplotlib, because a sweep names its runs' colours long before it draws a figure."""

import colorsys

# Okabe and Ito, Color Universal Design, 2008: colours that colour-blind readers can tell apart. Yellow stands last
# because it is hard to see on white paper.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")


def run_color(number: int) -> str:
    """The colour of a sweep's n-th run: no two of its first thousand runs have the same."""
    if number < len(COLORS):
        return COLORS[number]
    hue = number * (5**0.5 - 1) / 2 % 1  # multiples of the golden ratio lie far apart on the circle of hues
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + number % 3 * 0.2, 0.85 - number % 4 * 0.15)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


BLUE, VERMILLION = COLORS[:2]
GREY, PALE, GRID = "#595959", "#b0b0b0", "#e5e5e5"
# A report's CSS variables on a light and on a dark page.
LIGHT = {"paper": "#ffffff", "ink": "#1b1b1b", "muted": GREY, "grid": GRID, "blue": BLUE, "sky": COLORS[5]}
DARK = {"paper": "#16181c", "ink": "#e8e8e8", "muted": "#a8a8a8", "grid": "#363a40"}
DARK |= {"blue": "#5db4ee", "sky": "#c3e8ff"}
