"""`make release`: what is built, looked at, installed and tried."""
