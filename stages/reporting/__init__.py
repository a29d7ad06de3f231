"""The report page, the comparison page and the model card."""
