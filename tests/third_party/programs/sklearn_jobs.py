"""scikit-learn with two jobs, over both of joblib's kinds of processes."""

import numpy
from joblib import parallel_config
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

if __name__ == "__main__":
    features, labels = make_classification(300, random_state=1)
    for backend in ("loky", "multiprocessing"):
        with parallel_config(backend=backend, n_jobs=2):
            search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1, 10]}, cv=3).fit(features, labels)
            print(backend, search.best_params_, round(search.best_score_, 6))
            forest = RandomForestClassifier(20, random_state=1)
            print(numpy.round(cross_val_score(forest, features, labels, cv=3), 6).tolist())
