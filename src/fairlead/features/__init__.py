"""Features behind a failure: contrasted, attributed, screened causally, and shown on cards.

from fairlead.features.find import Search, find
found = find(subject, dictionary, train_points, validation_points, Search(k=4))
"""
