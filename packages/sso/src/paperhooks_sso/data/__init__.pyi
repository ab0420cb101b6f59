from .principles import CONCISION as CONCISION
from .principles import SAFETY as SAFETY
from .principles import Principle as Principle
from .principles import PrincipleBank as PrincipleBank
from .principles import system_message as system_message
from .prompts import ChatFormat as ChatFormat
from .prompts import Conversation as Conversation
from .prompts import conversation_of as conversation_of
