"""What is decided: plans, the options and targets they are made for, the evidence and quality they rest on."""
