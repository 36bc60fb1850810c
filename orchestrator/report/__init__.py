"""A run folder as one HTML page that needs no network: charts are inline SVG of our own drawing.

build.py     write_report(folder) -> report.html; the entry
record.py    the files of a run folder -> Record; tolerant of a run that goes on or was killed
figures.py   Record -> the numbers on the page: key figures, phases, step times
page.py      the page, section by section
curves.py    the charts of a run: which series, axes and marks
tables.py    events, phases, slowest steps, figures by epoch, versions
agreement.py how the workers agreed on one model: updates and staleness
advice.py    what another strategy might do better, as far as the run's own figures tell
strategy.py  the section `strategy` in words
kernels.py   which algorithm computes which convolution, and what that saves
charts.py    data -> SVG: lines, stacked areas, histogram, columns, groups of bars, bar of shares
markup.py    text -> escaped HTML elements
axes.py      ranges and round ticks
series.py    thinning and smoothing of long series
data_page.py what `convoy stats` found -> a page, and tables for a terminal
wording.py   numbers, durations and times as text
style.py     colours and layout
"""
