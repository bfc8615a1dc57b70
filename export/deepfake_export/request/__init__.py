"""What an export is asked for: values that travel as one, and in what two of them differ."""
