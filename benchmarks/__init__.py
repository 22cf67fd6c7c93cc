"""What kvcached costs, measured. Programs here print a table and can write JSON."""
