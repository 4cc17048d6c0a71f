"""The pocket LLaVA: scenes drawn on the spot, and questions about them, to train and test on."""
