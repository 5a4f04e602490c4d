"""Real reviews: predict the rating of an Amazon review from its text.

    ift train --config=amazon_reviews --config.data.path=reviews.jsonl.gz --workdir=runs/amazon

The file holds one object a line with review_body and star_rating (1 to 5). 1,000 class-balanced
training reviews, 300 class-balanced test reviews that training never saw.
"""

from ift_jax.config import default_config, task_config


def get_config():
    config = default_config()
    config.data.tasks = (
        task_config(
            name="rating",
            templates="reviews",
            template_names=("Predict the rating",),
            split_by=("review_body",),
            balance_by="star_rating",
            test_fraction=0.2,  # so that the rarest rating has 60 reviews to test on
            train_size=1000,
            validation_size=100,
            test_size=300,
        ),
    )
    config.data.max_length = 256
    config.data.on_too_long = "truncate"
    config.train.batch_size = 4
    config.train.eval_every = 25
    config.train.eval_metrics = ("accuracy",)
    config.train.select_by = "accuracy"
    config.optimizer.peak_lr = 5e-5
    config.evaluation.shots = (0, 5)
    return config
