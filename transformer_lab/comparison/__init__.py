"""What differs between two runs of one model, which operation it comes from, and whether it is rounding or a defect."""
