"""What people read: the report page, the model card, and their parts."""
