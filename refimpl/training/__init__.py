"""Where adapters come from: LoRA training, several adapters at once over one base, the backward pass on one page.

lora_config  which modules get a LoRA, and how large: PEFT's names and meanings
parameters   the trainable arrays of one adapter, from PEFT's initialisation to an Adapter that serves
backward     the page: each layer's forward pass, and below it its backward pass, line by line the other way round
gradients, lora_gradients, attention_gradients    the vector-Jacobian product of each step, beside its formula
loss         one batch of sequences of all tasks -> each task's loss and gradients
optimizer    AdamW, the learning rate's schedule, clipping
trainable    which bases have a way back at all
loop         steps, until every task has had its epochs
data, chat   JSONL rows, messages by the model's chat template -> token ids, and which of them have a loss
session, checkpoint    one run, and its last state on disk: it goes on from there to the same bits
output           PEFT folders, and the loss as a picture: what `loracle train` leaves
"""

from .arguments import TrainingArguments as TrainingArguments
from .data import Encoder as Encoder
from .data import read_dataset as read_dataset
from .data import split as split
from .examples import Example as Example
from .examples import Task as Task
from .loop import evaluate as evaluate
from .loop import train as train
from .lora_config import LoraConfig as LoraConfig
from .state import TrainingError as TrainingError
from .state import TrainingState as TrainingState
