"""The one palette, without Matplotlib: a sweep colours its runs in MLflow's UI long before a figure is drawn."""

# Okabe and Ito, Color Universal Design, 2008: colours that colour-blind readers can tell apart. Yellow stands last
# because it is hard to see on white paper.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
BLUE, VERMILLION = COLORS[:2]
GREY, PALE, GRID = "#595959", "#b0b0b0", "#e5e5e5"
