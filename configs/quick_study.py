"""The whole study in minutes, on embedded data: ratings learned, names and products forgotten.

    ift study --config=quick_study --workdir=runs/quick_study

SmolLM2-135M-Instruct first learns to answer questions about names ("What is the cat's name?") and
to tell products apart, so that it has something to lose; then, from there, to rate reviews and
nothing else, plainly and with remedies. Beside it stand the model as it is, at 0 and 5 shots, and
a learning curve. About 20 minutes on two CPU cores, in 5 GB of memory.

150 items of the rating and 100 of each probe: a score of 50 % has an interval of 42 to 58 and of 40
to 60 %. Differences are paired by item, so their intervals are narrower.
"""

from ift_jax.config import default_config, task_config


def get_config():
    config = default_config()
    config.data.tasks = (
        task_config(
            name="rating",
            source="embedded:reviews",
            templates="reviews",
            template_names=("Predict the rating",),
            split_by=("review_body",),
            balance_by="star_rating",
            train_size=400,
            validation_size=50,
            test_size=150,
            metrics=("accuracy",),
        ),
        task_config(
            name="names",
            source="embedded:names",
            templates="names",
            template_names=("Question about a name",),
            split_by=("text",),
            train_size=300,
            validation_size=40,
            test_size=100,
            metrics=("exact_match", "accuracy"),
        ),
        task_config(
            name="product",
            source="embedded:reviews",
            templates="products",
            template_names=("Kind of product",),
            split_by=("review_body",),
            balance_by="product_category",
            balance_fill=True,
            train_size=300,
            validation_size=40,
            test_size=100,
            metrics=("exact_match",),
        ),
    )
    config.data.max_length = 256
    config.data.row_length = 232
    config.train.batch_size = 4
    config.train.eval_metrics = ("loss",)
    config.train.eval_every = 30
    config.train.num_samples = 4
    config.optimizer.peak_lr = 1e-4
    config.evaluation.shots = (0, 5)
    config.study.runs = (
        {"name": "first", "tasks": ("names", "product")},
        {"name": "single", "after": "first", "interpolations": (0.5,)},
        {
            "name": "replay",
            "after": "first",
            "replay": ("names", "product"),
            "config": {"data.mixture.replay_share": 0.2},
        },
        {
            "name": "lora",
            "after": "first",
            "config": {"peft.method": "lora", "optimizer.peak_lr": 5e-4},
        },
        {"name": "curve", "train_sizes": (50, 200, 400), "scores": ("rating",)},
    )
    return config
