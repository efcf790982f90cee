"""``trainer.predict`` with our data modules."""

from functools import partial

import plain_trainer
import pytest
import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader

from cvattn import SAGANClassifier, Transformer
from cvattn.data import DigitsData, StringsData
from cvattn.tasks import ClassificationTask, SequenceTask

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@pytest.fixture
def trainer(tmp_path):
    return plain_trainer.trainer(tmp_path)


def test_images_get_their_logits_in_order(trainer):
    network = SAGANClassifier(10, image_size=[32, 32], widths=[4, 8, 5]).eval()
    task = ClassificationTask(network, num_classes=10, optimizer=partial(AdamW, lr=0.1))
    data = DigitsData(eval_batch_size=101)
    found = trainer.predict(task, datamodule=data)
    assert sum(map(len, found)) == 360
    with torch.no_grad():
        want = network(torch.cat([images for images, _ in data.test_dataloader()]))
    torch.testing.assert_close(torch.cat(found), want)
    own = trainer.predict(
        task, DataLoader(torch.zeros(3, 3, 32, 32), batch_size=3)
    )  # images alone, of one's own loader
    assert own[0].shape == (3, 10)


def test_strings_get_their_answers(trainer):
    data = StringsData(test_size=9, eval_batch_size=4)
    info = data.describe()
    network = Transformer(
        info.fills()["source_vocab"],
        info.fills()["target_vocab"],
        embed_dim=8,
        num_heads=2,
        ffn_dim=11,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    task = SequenceTask(
        network,
        alphabet=info.alphabet,
        max_length=info.max_length,
        optimizer=partial(AdamW, lr=0.1),
    )
    found = trainer.predict(task, datamodule=data)
    assert sum(map(len, found)) == 9
    assert all(isinstance(answer, str) for answers in found for answer in answers)
