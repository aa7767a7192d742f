"""dptrain: differential-privacy training whose label is true, checked, and adds up."""

__version__ = "0.1.0"
