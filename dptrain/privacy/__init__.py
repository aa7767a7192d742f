"""The plan and its price: mechanism, accounting, calibration, statement. No torch here."""
