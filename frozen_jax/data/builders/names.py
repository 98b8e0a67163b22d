"""Common names of the currencies and languages that countryinfo lists by ISO code.

Each table has a line for each code: the usual name, then other accepted names. Codes of funds and
of withdrawn currencies (BOV, CLF, CUC, USN, ...) are left out on purpose: nobody pays with them, so
there are no questions about them.
"""

_CURRENCIES = """
AED United Arab Emirates dirham|UAE dirham|Emirati dirham
AFN Afghan afghani
ALL Albanian lek
AMD Armenian dram
AOA Angolan kwanza
ARS Argentine peso
AUD Australian dollar
AZN Azerbaijani manat
BAM Bosnia and Herzegovina convertible mark|convertible mark|Bosnian mark
BBD Barbadian dollar|Barbados dollar
BDT Bangladeshi taka
BGN Bulgarian lev
BHD Bahraini dinar
BIF Burundian franc|Burundi franc
BND Brunei dollar
BOB Bolivian boliviano
BRL Brazilian real
BSD Bahamian dollar
BTN Bhutanese ngultrum
BWP Botswana pula
BYR Belarusian ruble|Belarusian rouble|rouble
BZD Belize dollar
CAD Canadian dollar
CDF Congolese franc
CHF Swiss franc
CLP Chilean peso
CNY Chinese yuan|renminbi|yuan renminbi|RMB
COP Colombian peso
CRC Costa Rican colón
CUP Cuban peso
CVE Cape Verdean escudo
CZK Czech koruna|Czech crown|crown
DJF Djiboutian franc|Djibouti franc
DKK Danish krone|Danish crown
DOP Dominican peso
DZD Algerian dinar
EGP Egyptian pound
ERN Eritrean nakfa
ETB Ethiopian birr
EUR euro|euros
FJD Fijian dollar|Fiji dollar
GBP pound sterling|British pound|pound
GEL Georgian lari
GHS Ghanaian cedi|Ghana cedi
GMD Gambian dalasi
GNF Guinean franc
GTQ Guatemalan quetzal
GYD Guyanese dollar|Guyana dollar
HNL Honduran lempira
HTG Haitian gourde
HUF Hungarian forint
IDR Indonesian rupiah
ILS Israeli new shekel|Israeli shekel|new shekel|new Israeli shekel
INR Indian rupee
IQD Iraqi dinar
IRR Iranian rial
ISK Icelandic króna|Icelandic krona
JMD Jamaican dollar
JOD Jordanian dinar
JPY Japanese yen
KES Kenyan shilling|Kenya shilling
KGS Kyrgyzstani som|Kyrgyz som
KHR Cambodian riel
KMF Comorian franc
KPW North Korean won
KRW South Korean won|Korean won
KWD Kuwaiti dinar
KZT Kazakhstani tenge|Kazakh tenge
LAK Lao kip|Laotian kip
LBP Lebanese pound|lira
LKR Sri Lankan rupee
LRD Liberian dollar
LSL Lesotho loti|maloti
LYD Libyan dinar
MAD Moroccan dirham
MDL Moldovan leu
MGA Malagasy ariary
MKD Macedonian denar
MMK Burmese kyat|Myanmar kyat
MNT Mongolian tögrög|Mongolian tugrik|tugrik
MRO Mauritanian ouguiya
MUR Mauritian rupee
MVR Maldivian rufiyaa
MWK Malawian kwacha
MXN Mexican peso
MYR Malaysian ringgit
MZN Mozambican metical
NAD Namibian dollar|Namibia dollar
NGN Nigerian naira
NIO Nicaraguan córdoba
NOK Norwegian krone|Norwegian crown
NPR Nepalese rupee
NZD New Zealand dollar
OMR Omani rial
PAB Panamanian balboa
PEN Peruvian sol|nuevo sol|Peruvian nuevo sol
PGK Papua New Guinean kina
PHP Philippine peso
PKR Pakistani rupee
PLN Polish złoty
PYG Paraguayan guaraní
QAR Qatari riyal|Qatari rial
RON Romanian leu
RSD Serbian dinar
RUB Russian ruble|Russian rouble|rouble
RWF Rwandan franc|Rwanda franc
SAR Saudi riyal|Saudi Arabian riyal
SBD Solomon Islands dollar
SCR Seychellois rupee
SDG Sudanese pound
SEK Swedish krona|Swedish crown
SGD Singapore dollar
SLL Sierra Leonean leone
SOS Somali shilling
SRD Surinamese dollar
SSP South Sudanese pound
STD São Tomé and Príncipe dobra
SYP Syrian pound|lira
SZL Swazi lilangeni|emalangeni
THB Thai baht
TJS Tajikistani somoni
TMT Turkmenistan manat|Turkmen manat
TND Tunisian dinar
TOP Tongan paʻanga|pa'anga
TRY Turkish lira
TTD Trinidad and Tobago dollar
TWD New Taiwan dollar|Taiwan dollar
TZS Tanzanian shilling
UAH Ukrainian hryvnia
UGX Ugandan shilling
USD US dollar|United States dollar|American dollar|U.S. dollar
UYU Uruguayan peso
UZS Uzbekistani som|Uzbek som|soum
VEF Venezuelan bolívar|bolívar fuerte
VND Vietnamese đồng|Vietnamese dong
VUV Vanuatu vatu
WST Samoan tālā
XAF Central African CFA franc|CFA franc
XCD Eastern Caribbean dollar|East Caribbean dollar
XOF West African CFA franc|CFA franc
YER Yemeni rial
ZAR South African rand
ZMK Zambian kwacha
ZWL Zimbabwean dollar|Zimbabwe dollar
"""

_LANGUAGES = """
af Afrikaans
am Amharic
ar Arabic
ay Aymara
az Azerbaijani|Azeri
be Belarusian
bg Bulgarian
bi Bislama
bn Bengali|Bangla
bs Bosnian
ca Catalan
cnr Montenegrin
cs Czech
da Danish
de German
dv Dhivehi|Divehi|Maldivian
dz Dzongkha
el Greek
en English
es Spanish
et Estonian
fa Persian|Farsi|Dari
ff Fula|Fulani
fi Finnish
fil Filipino|Tagalog
fj Fijian
fr French
ga Irish|Gaelic|Irish Gaelic
gil Gilbertese
gn Guarani|Guaraní
he Hebrew
hi Hindi
hr Croatian
ht Haitian Creole
hu Hungarian
hy Armenian
id Indonesian|Bahasa Indonesia
is Icelandic
it Italian
ja Japanese
ka Georgian
kg Kongo|Kikongo
kk Kazakh
km Khmer|Cambodian
ko Korean
ku Kurdish
ky Kyrgyz|Kirghiz
la Latin
lb Luxembourgish
ln Lingala
lo Lao|Laotian
lt Lithuanian
lu Luba-Katanga|Tshiluba
lv Latvian
mg Malagasy
mh Marshallese
mi Māori
mk Macedonian
mn Mongolian
ms Malay|Bahasa Melayu|Bahasa Malaysia
mt Maltese
my Burmese
na Nauruan
nb Norwegian Bokmål|Bokmål
nd Ndebele|Northern Ndebele
ne Nepali
nl Dutch
nn Norwegian Nynorsk|Nynorsk
no Norwegian
nr Southern Ndebele|Ndebele
ny Chichewa|Chewa|Nyanja
oc Occitan
pau Palauan
pl Polish
ps Pashto
pt Portuguese
qu Quechua
rn Kirundi|Rundi
ro Romanian
ru Russian
rw Kinyarwanda
sg Sango
si Sinhala|Sinhalese
sk Slovak
sl Slovene|Slovenian
sm Samoan
sn Shona
so Somali
sq Albanian
sr Serbian
ss Swazi|Swati
st Sesotho|Sotho|Southern Sotho
sv Swedish
sw Swahili|Kiswahili
ta Tamil
tet Tetum
tg Tajik
th Thai
ti Tigrinya
tk Turkmen
tn Tswana|Setswana
to Tongan
tr Turkish
ts Tsonga
tvl Tuvaluan
uk Ukrainian
ur Urdu
uz Uzbek
ve Venda
vi Vietnamese
xh Xhosa
zh Chinese|Mandarin|Mandarin Chinese|Standard Chinese
zu Zulu
"""


def _read(table: str) -> dict[str, tuple[str, ...]]:
  rows = (line.split(" ", 1) for line in table.strip().splitlines())
  return {code: tuple(names.split("|")) for code, names in rows}


CURRENCY_NAMES = _read(_CURRENCIES)
LANGUAGE_NAMES = _read(_LANGUAGES)


def currency_names(code: str) -> tuple[str, ...]:
  """ISO 4217 code -> names, the usual one first, then the unit alone ("sol") and the code.

  Empty for a code that is no money in use.
  """
  names = CURRENCY_NAMES.get(code, ())
  units = tuple(name.split()[-1] for name in names[:1])
  return tuple(dict.fromkeys(names + units + (code,))) if names else ()


def language_names(code: str) -> tuple[str, ...]:
  """ISO 639 code -> names, the usual one first, then the code; empty for an unknown code."""
  names = LANGUAGE_NAMES.get(code, ())
  return (*names, code) if names else ()
