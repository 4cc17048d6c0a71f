"""Commands: answer, info, demo. They import the models and the algorithm; nothing imports them."""
