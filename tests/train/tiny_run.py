"""A run of six steps on embedded reviews, as a config's tree."""


def run_tree(model, **changes):
    tree = {
        "model": {"path": str(model)},
        "data": {
            "max_length": 480,
            "tasks": [
                {
                    "name": "rating",
                    "source": "embedded:reviews",
                    "templates": "reviews",
                    "template_names": ["Predict the rating"],
                    "split_by": ["review_body"],
                    "balance_by": "star_rating",
                    "train_size": 60,
                    "validation_size": 10,
                    "test_size": 15,
                }
            ],
        },
        "train": {"num_steps": 6, "batch_size": 8, "eval_every": 3},
        "optimizer": {"peak_lr": 1e-3, "warmup_steps": 2},
        "evaluation": {"shots": [0, 1]},
    }
    for path, value in changes.items():
        section, field = path.split("__")
        tree[section][field] = value
    return tree
