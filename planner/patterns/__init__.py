"""The words and their algebra: layouts, groups, patterns and the closed forms that follow from them."""
