"""The old place of `analysis.reader`, until all who import it have moved."""

from analysis.reader import load_history as load_history
from analysis.reader import read_table as read_table
